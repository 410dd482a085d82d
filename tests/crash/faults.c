/* Calls that write below one folder are counted, and the n-th one fails, is cut short, or is the last one of its process.

   Loaded with LD_PRELOAD, armed by fault_arm: so it is the real program, the real SQLite and the real disk, up to that call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { ONCE, FROM_THEN_ON, HALF, KILL };

static char under[PATH_MAX], which[PATH_MAX];
static size_t length;
static int number = EIO, how;
static long nth;
static atomic_long calls;

void fault_arm(const char *folder, long at, int kind, int error) {
    snprintf(under, sizeof under, "%s", folder);
    length = strlen(under);
    nth = at, how = kind, number = error;
    atomic_store(&calls, 0);
}

long fault_calls(void) { return atomic_load(&calls); }

/* 0: let it pass, 1: fail, 2: half of it. */
static int verdict(const char *path) {
    if (!length || strncmp(path, under, length)) return 0;
    long now = atomic_fetch_add(&calls, 1) + 1;
    if (!nth || now < nth) return 0;
    if (how == KILL) raise(SIGKILL);
    if (how == HALF) return now == nth ? 2 : now == nth + 1;
    return now == nth || how == FROM_THEN_ON;
}

static const char *name_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return path;
}

static int of_file(int fd) {
    char path[PATH_MAX];
    return length ? verdict(name_of(fd, path)) : 0;
}

/* A file whose sync failed is not to be synced again: the system may have dropped what it did not take, and says so once.

   Each is held by a descriptor that can neither read nor write: removed, it would leave its number to the next file that is made.
   A folder may be synced again. Its names are not dropped with its pages: a file system that cannot write them stops as a whole.
   So may a database: SQLite has by then written to it anew what its log or its journal holds. The log itself it syncs when it
   closes, to read it; that counts if something durable is acknowledged while that log is in use, and is counted apart. */
static struct { int held, is_log; long again; struct stat file; } failed[256];
static int known;

static int of_sync(int fd) {
    static atomic_flag turn = ATOMIC_FLAG_INIT;
    struct stat file;
    char path[PATH_MAX], link[64];
    int told = of_file(fd);
    if (!length || fstat(fd, &file) || !S_ISREG(file.st_mode)) return told;
    const char *end = strrchr(name_of(fd, path), '.');
    if (end && !strcmp(end, ".db")) return told;
    while (atomic_flag_test_and_set(&turn));
    for (int at = 0; told != 1 && at < known; at++)
        if (failed[at].file.st_dev == file.st_dev && failed[at].file.st_ino == file.st_ino) {
            failed[at].again++;
            strcpy(which, path);
        }
    if (told == 1 && known < 256) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        failed[known].held = open(link, O_PATH);
        failed[known].is_log = end && !strcmp(end, ".db-wal");
        failed[known++].file = file;
    }
    atomic_flag_clear(&turn);
    return told;
}

/* How often a refused file was synced again; or how many logs of a database were, and are in use. */
long fault_again(int of_logs) {
    long again = 0;
    struct stat file;
    for (int at = 0; at < known; at++)
        if (failed[at].is_log == of_logs) again += !of_logs ? failed[at].again : failed[at].again && !fstat(failed[at].held, &file) && file.st_nlink;
    return again;
}
const char *fault_which(void) { return which; }

static int of_path(const char *path) {
    if (!length) return 0;
    if (*path == '/') return verdict(path);
    char whole[2 * PATH_MAX];
    if (!getcwd(whole, PATH_MAX)) return 0;
    strcat(whole, "/");
    strncat(whole, path, PATH_MAX - 1);
    return verdict(whole);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define REFUSED return (errno = number, -1)

ssize_t write(int fd, const void *data, size_t size) {
    int told = of_file(fd);
    if (told == 1) REFUSED;
    return NEXT(write)(fd, data, told == 2 && size > 1 ? size / 2 : size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    int told = of_file(fd);
    if (told == 1) REFUSED;
    return NEXT(pwrite)(fd, data, told == 2 && size > 1 ? size / 2 : size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    int told = of_file(fd);
    if (told == 1) REFUSED;
    return NEXT(pwrite64)(fd, data, told == 2 && size > 1 ? size / 2 : size, at);
}
#define ON_SYNC(name) int name(int fd) { if (of_sync(fd) == 1) REFUSED; return NEXT(name)(fd); }
ON_SYNC(fsync)
ON_SYNC(fdatasync)
#define ON_FILE(name, given, passed) int name given { if (of_file(fd) == 1) REFUSED; return NEXT(name) passed; }
ON_FILE(ftruncate, (int fd, off_t size), (fd, size))
ON_FILE(ftruncate64, (int fd, off64_t size), (fd, size))
#define ON_PATH(name, given, passed) int name given { if (of_path(path) == 1) REFUSED; return NEXT(name) passed; }
ON_PATH(rename, (const char *path, const char *to), (path, to))
ON_PATH(link, (const char *path, const char *to), (path, to))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(rmdir, (const char *path), (path))
