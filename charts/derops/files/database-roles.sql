create role derops_writer login;
grant connect, create, temporary on database derops to derops_writer;
grant usage, create on schema public to derops_writer;
