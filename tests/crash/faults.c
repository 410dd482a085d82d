/* Calls that write below one folder are counted, and the n-th one fails, is cut short, or is the last one of its process.

   Loaded with LD_PRELOAD, armed by fault_arm: so it is the real program, the real SQLite and the real disk, up to that call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { ONCE, FROM_THEN_ON, HALF, KILL };

static char under[PATH_MAX];
static size_t length;
static int number = EIO, how;
static long nth;
static atomic_long calls, again;

void fault_arm(const char *folder, long at, int kind, int error) {
    snprintf(under, sizeof under, "%s", folder);
    length = strlen(under);
    nth = at, how = kind, number = error;
    atomic_store(&calls, 0);
}

long fault_calls(void) { return atomic_load(&calls); }
long fault_again(void) { return atomic_load(&again); }

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

static int of_database(int fd) {
    char path[PATH_MAX];
    return strstr(name_of(fd, path), ".db") != NULL;
}

/* A file whose sync failed is not to be synced again. SQLite does so when it closes, and reads its log then: that is its own affair. */
static int of_sync(int fd) {
    static ino_t failed[256];
    static int known;
    struct stat file;
    int told = of_file(fd), regular = !fstat(fd, &file) && S_ISREG(file.st_mode) && !of_database(fd);
    for (int at = 0; told != 1 && regular && at < known; at++)
        if (failed[at] == file.st_ino) again++;
    if (told == 1 && regular && known < 256) failed[known++] = file.st_ino;
    return told;
}

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
