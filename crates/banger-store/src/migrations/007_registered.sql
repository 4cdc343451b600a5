-- Where an image's root file system is a file of the user's: its path, and by what it is known to be the same file still,
-- at the size that the row has. NULL: the file is Banger's own.
ALTER TABLE images ADD COLUMN file_path TEXT;
ALTER TABLE images ADD COLUMN file_inode INTEGER;       -- as the bits of a number without sign
ALTER TABLE images ADD COLUMN file_modified INTEGER;    -- nanoseconds since 1970-01-01T00:00:00Z
