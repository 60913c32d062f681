-- Who ordered a dispatch, as its status.createdBy says; on each step that the headend tells.
-- Empty column = the operator did not say; 'unknown' = nobody can know.
alter table dispatch_event add column created_by text;
