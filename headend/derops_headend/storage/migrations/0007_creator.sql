-- Who ordered a dispatch, as its annotation derops.io/created-by says; on the step Submitted alone.
-- Empty column = the operator did not say; 'unknown' = nobody can know.
alter table dispatch_event add column created_by text;
