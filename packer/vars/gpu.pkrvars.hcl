# One NVIDIA L4; the root volume leaves room for the driver and the published weights.
variant         = "gpu"
instance_type   = "g6.xlarge"
root_volume_gib = 64
