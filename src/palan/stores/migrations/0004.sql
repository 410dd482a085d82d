create table attempt (
  id text primary key, name text not null, run text not null, count integer not null, time text not null, reason text not null
);
create index attempt_by_count on attempt (count);
