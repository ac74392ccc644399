# Speech on processors only: small deployments, and every build on this machine.
variant         = "cpu"
instance_type   = "m7i.large"
root_volume_gib = 16
