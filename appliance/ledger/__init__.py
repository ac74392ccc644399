"""The tamper-evident trail: one hash chain per tenant, signed exports, signed receipts of erasures."""
