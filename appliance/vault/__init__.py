"""Envelope encryption bound to a tenant, crypto-shredding, and signatures.

A `Vault` works over one of two hierarchies of keys. The root seals one key per tenant, and that one the data
key of each message.

| hierarchy | root | a tenant's key | `BranchKeys` keeps |
|---|---|---|---|
| `LocalHierarchy` | a file with generations, a systemd credential | made here | the sealed key |
| `KmsHierarchy` | a KMS key | in the AWS key store, DynamoDB | the key's id |
"""
