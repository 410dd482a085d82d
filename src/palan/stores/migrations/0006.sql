alter table job add column priority integer not null default 0;
alter table job add column queue text not null default '';
alter table job add column holder text not null default '';
alter table job add column expires text;
alter table job add column died integer not null default 0;
create index job_by_turn on job (model, fate, priority desc, id);
