-- What a person decided about quarantined rows: why, and the part of the table in which they stand since, if they do.
alter table quarantine add column taken text not null default '';
alter table quarantine add column reason text not null default '';
