create function entry_is_append_only() returns trigger language plpgsql as
  $$ begin raise exception 'the ledger is append-only' using errcode = 'integrity_constraint_violation'; end $$;
create trigger entry_is_never_edited before update on entry for each row execute function entry_is_append_only();
create trigger entry_is_never_removed before delete on entry for each row execute function entry_is_append_only();
create trigger entry_is_never_emptied before truncate on entry for each statement execute function entry_is_append_only();
create table writer (id int generated always as identity primary key, opened timestamptz not null default now());
create table segment (
  id int generated always as identity primary key, writer int not null references writer,
  stream text collate "C" not null, size bigint not null default 0, sealed boolean not null default false
);
create index segment_by_stream on segment (stream);
create table block (
  segment int not null references segment, begins bigint not null, ends bigint not null, frames bytea not null,
  primary key (segment, ends)
);
