alter table run add column name text not null default '';
alter table run add column parent text not null default '';
create index run_by_parent on run (parent);
create index run_by_time on run (time);
create table value (
  run text not null, kind text not null, key text not null, text text, number real, least real, largest real,
  count integer not null, step integer not null, time integer not null, primary key (run, kind, key)
) without rowid;
create index value_by_number on value (kind, key, number, run);
create index value_by_text on value (kind, key, text, run);
create table curve (
  run text not null, keyset text not null, part integer not null, points integer not null,
  outline blob not null, data blob not null, primary key (run, keyset, part)
);
create table keyset (id text primary key, names text not null);
create table folded (segment text primary key, reached integer not null);
create table artifact (
  run text not null, path text not null, blob text not null, size integer not null, time text not null,
  primary key (run, path)
);
