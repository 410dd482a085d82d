create table lease (
  name text primary key, holder text not null, token integer not null, expires text not null
);
create table run (
  id text primary key, flow text not null, subject text not null, status text not null, time text not null, ended text,
  holder text not null, token integer not null, params text not null, metrics text not null, tags text not null,
  code text not null, data text not null, environment text not null, reason text not null
);
create index run_by_subject on run (flow, subject, time);
create index run_by_status on run (status);
create table step (
  id text primary key, run text not null, name text not null, value text not null, parts text not null,
  time text not null, seconds real not null
);
create index step_by_name on step (name, time);
create index step_by_run on step (run);
create table data_version (
  id text primary key, data text not null, number integer not null, time text not null, parts text not null,
  rows integer not null, added integer not null, run text not null, sources text not null, verdict text not null,
  unique (data, number)
);
create table quarantine (
  id text primary key, data text not null, time text not null, source text not null, blob text not null,
  rows integer not null, reasons text not null, status text not null
);
create index quarantine_by_data on quarantine (data, time);
create table version (
  id text primary key, model text not null, number integer not null, kind text not null, manifest text not null,
  run text not null, time text not null, unique (model, number)
);
create table evidence (
  id text primary key, version text not null, against text not null, gate text not null, verdict text not null,
  text text not null, figures text not null, time text not null
);
create index evidence_by_version on evidence (version, time);
create table release (
  model text primary key, epoch integer not null, time text not null, arms text not null, previous text not null,
  until text, repairs text not null, reason text not null, detail text not null
);
create table job (
  id text primary key, model text not null, version text not null, fate text not null, time text not null,
  request text not null, started text, ended text, status text not null, objective real, bound real,
  result text not null, decision text not null, idempotency_key text not null, reason text not null
);
create index job_by_fate on job (fate, time);
create index job_by_model on job (model, time);
create index job_by_idempotency_key on job (idempotency_key);
create table alarm (
  id text primary key, model text not null, time text not null, lane text not null, status text not null,
  since text not null, until text not null, what text not null, diagnosis text not null, columns text not null,
  evidence text not null
);
create index alarm_by_model on alarm (model, time);
create table remedy (
  id text primary key, alarm text not null, model text not null, time text not null, status text not null,
  choice text not null, reason text not null, candidates text not null, action text not null,
  predicted real, realised real
);
create index remedy_by_model on remedy (model, time);
create table entry (
  seq integer primary key, time text not null, actor text not null, verb text not null, subject text not null,
  reason text not null, detail text not null, prev text not null, digest text not null unique
);
create index entry_by_subject on entry (subject, seq);
create table head (id text primary key, seq integer not null, digest text not null, seal text not null);
