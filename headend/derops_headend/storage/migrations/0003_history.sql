-- People ask for a dispatch by its name.

create index on dispatch_event (dispatch_name);
