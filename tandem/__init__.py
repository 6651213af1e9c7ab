"""Tandem: ask questions about pictures. The client, the `tandem` command and the generated stubs (`tandem.v1`)."""
