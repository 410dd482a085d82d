-- Rows of a data version's parts that are hidden: corrected since, or found to be no rows. Null in versions of before.
alter table data_version add column masks text;
