-- An image has any number of names, and none once another has taken its last. The table is made anew because a column that
-- is unique cannot be dropped; machines go on referring to the same ids, which is looked at when all of this is committed.
PRAGMA defer_foreign_keys = ON;
CREATE TABLE images_before AS SELECT * FROM images;
DROP TABLE images;

CREATE TABLE images (
    id           TEXT PRIMARY KEY,
    kernel       TEXT NOT NULL REFERENCES kernels (name),
    sha256       TEXT NOT NULL,
    size         INTEGER NOT NULL,
    used         INTEGER NOT NULL,
    source       TEXT NOT NULL,
    created      TEXT NOT NULL,
    digest       TEXT,                  -- of its manifest, 'sha256:…'; none of an image that is not of OCI
    index_digest TEXT,                  -- of the index of platforms that led to the manifest
    config       TEXT                   -- JSON, the engine's: what the image says of its processes
) STRICT;
INSERT INTO images SELECT id, kernel, sha256, size, used, source, created, NULL, NULL, NULL FROM images_before;
CREATE INDEX images_digest ON images (digest);

CREATE TABLE image_names (
    name  TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE
) STRICT;
INSERT INTO image_names SELECT name, id FROM images_before;
CREATE INDEX image_names_image ON image_names (image);

-- What is kept of what an image came as: manifest, configuration, layers, in this order.
CREATE TABLE image_blobs (
    image    TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    digest   TEXT NOT NULL,             -- 'sha256:…'
    size     INTEGER NOT NULL,
    PRIMARY KEY (image, position)
) STRICT;
CREATE INDEX image_blobs_digest ON image_blobs (digest);

-- By which name the machine's image was asked for; the name may be another image's since.
ALTER TABLE vms ADD COLUMN image_name TEXT NOT NULL DEFAULT '';
UPDATE vms SET image_name = (SELECT name FROM images_before WHERE images_before.id = vms.image);
DROP TABLE images_before;
