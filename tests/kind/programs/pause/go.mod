module derops.io/tests/kind/pause

go 1.26.0
