"""The local machine image: tree, isolation, disk, boot and verification."""
