"""The tables of the SQLite catalogue; columns are in the order of the rows of `control.ports`."""

APPLICATION_ID = 0x54464361
"""`TFCa`: marks the file as a catalogue, for us and for `file`(1)."""

FORMAT_VERSION = 1

TABLES = (
    """
    CREATE TABLE file (
      file_id TEXT NOT NULL PRIMARY KEY,
      customer_id TEXT NOT NULL,
      filename TEXT NOT NULL,
      purpose TEXT NOT NULL,
      size_bytes INTEGER NOT NULL,
      created_ms INTEGER NOT NULL,
      object_name TEXT NOT NULL,
      summary BLOB NOT NULL
    ) STRICT
    """,
    "CREATE INDEX file_by_time ON file (customer_id, created_ms, file_id)",
    """
    CREATE TABLE api_key (
      key_id TEXT NOT NULL UNIQUE,
      secret_sha256 BLOB PRIMARY KEY,
      hint TEXT NOT NULL,
      name TEXT NOT NULL,
      role TEXT NOT NULL,
      customer_id TEXT NOT NULL,
      created_ms INTEGER NOT NULL,
      revoked_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE enrolment_code (
      code_sha256 BLOB PRIMARY KEY,
      created_ms INTEGER NOT NULL,
      expires_ms INTEGER NOT NULL,
      used_ms INTEGER NOT NULL,
      vehicle_id TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE vehicle (
      vehicle_id TEXT PRIMARY KEY,
      name TEXT NOT NULL,
      public_key TEXT NOT NULL,
      enrolled_ms INTEGER NOT NULL,
      removed_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE model (
      model_id TEXT NOT NULL PRIMARY KEY,
      name TEXT NOT NULL,
      manifest BLOB NOT NULL,
      signature BLOB NOT NULL,
      created_ms INTEGER NOT NULL,
      removed_ms INTEGER NOT NULL
    ) STRICT
    """,
    "CREATE UNIQUE INDEX model_by_name ON model (name) WHERE removed_ms = 0",
)
