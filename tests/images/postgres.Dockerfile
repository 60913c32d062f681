FROM scratch
ADD rootfs.tar /
COPY postgres-entrypoint /usr/local/bin/docker-entrypoint.sh
# Compiling of queries needs LLVM, which is left out.
RUN chmod 0755 /usr/local/bin/docker-entrypoint.sh \
 && rm -rf /usr/lib/postgresql/17/lib/bitcode /usr/lib/postgresql/17/lib/llvmjit* \
      /usr/share/doc /usr/share/man /usr/share/locale \
 && printf "listen_addresses = '*'\\nshared_preload_libraries = 'timescaledb'\ntimescaledb.telemetry_level = off\n" \
      >> /usr/share/postgresql/17/postgresql.conf.sample \
 && printf 'postgres:x:999:999::/var/lib/postgresql:/bin/sh\n' >> /etc/passwd \
 && printf 'postgres:x:999:\n' >> /etc/group \
 && mkdir -p /docker-entrypoint-initdb.d /run/postgresql /var/lib/postgresql/data \
 && chmod 1777 /run/postgresql /var/lib/postgresql /var/lib/postgresql/data
ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/bin:/usr/bin:/bin \
    PGDATA=/var/lib/postgresql/data \
    LANG=C.UTF-8
USER 999:999
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
