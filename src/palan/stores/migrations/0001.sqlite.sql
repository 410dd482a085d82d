create trigger entry_is_never_edited before update on entry begin select raise(abort, 'the ledger is append-only'); end;
create trigger entry_is_never_removed before delete on entry begin select raise(abort, 'the ledger is append-only'); end;
