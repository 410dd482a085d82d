create index run_by_flow on run (flow, time);
drop index run_by_status;
create index run_by_status on run (status, flow);
