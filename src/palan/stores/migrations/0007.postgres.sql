alter table segment add column blob text collate "C" not null default '';
