FROM scratch
COPY modbusserver /modbusserver
USER 65532:65532
ENTRYPOINT ["/modbusserver"]
