alter table run add column deleted text;
create table experiment (
  number integer primary key, name text not null unique, time text not null, updated text not null, deleted text, tags text not null
);
insert into experiment (number, name, time, updated, tags)
  select row_number() over (order by min(time)), subject, min(time), min(time), '{}' from run where flow = 'track' group by subject;
create table input (
  run text not null, kind text not null, name text not null, digest text not null, about text not null,
  primary key (run, kind, name, digest)
);
create table registered_model (
  name text primary key, time text not null, updated text not null, description text not null, tags text not null, aliases text not null
);
create table model_version (
  model text not null, number integer not null, time text not null, updated text not null, source text not null, run text not null,
  logged text not null, stage text not null, description text not null, link text not null, tags text not null, primary key (model, number)
);
create table logged_model (
  id text primary key, experiment integer not null, name text not null, kind text not null, run text not null, status text not null,
  time text not null, updated text not null, deleted text, reason text not null, tags text not null, params text not null, metrics text not null
);
