locals {
  image   = "${var.build_dir}/image/testudo-${var.app_version}-amd64.qcow2"
  scratch = "${var.build_dir}/tmp/verify"
  tags = {
    Environment     = var.environment
    Owner           = var.owner
    DataSensitivity = var.data_sensitivity
  }
}

# The AMI: Debian's own image on an instance that only Session Manager can reach.
source "amazon-ebs" "gpu" {
  ami_name        = "testudo-${var.app_version}-${var.variant}-${formatdate("YYYYMMDDhhmmss", timestamp())}"
  ami_description = "Testudo ${var.app_version} (${var.variant}): hardened Debian 12 speech appliance"
  region          = var.region
  instance_type   = var.instance_type

  source_ami_filter {
    owners      = ["136693071363"] # Debian
    most_recent = true
    filters = {
      name                = "debian-12-amd64-*"
      architecture        = "x86_64"
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
  }

  subnet_id                   = var.subnet_id
  security_group_id           = var.security_group_id
  associate_public_ip_address = false
  iam_instance_profile        = var.instance_profile
  communicator                = "ssh"
  ssh_interface               = "session_manager"
  ssh_username                = "admin"
  ssh_timeout                 = "15m"
  pause_before_connecting     = "30s"

  # Only where no profile is given: what AmazonSSMManagedInstanceCore needs for a session, and no more.
  temporary_iam_instance_profile_policy_document {
    Version = "2012-10-17"
    Statement {
      Effect = "Allow"
      Action = [
        "ssm:UpdateInstanceInformation",
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
      ]
      Resource = ["*"] # AWS has no resource-level form of the ssmmessages actions
    }
  }

  # packer>=1.10 begin
  temporary_key_pair_type = "ed25519"
  imds_support            = "v2.0"
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  # packer>=1.10 end

  encrypt_boot = true
  kms_key_id   = var.kms_key_id
  launch_block_device_mappings {
    device_name           = "/dev/xvda"
    volume_type           = "gp3"
    volume_size           = var.root_volume_gib
    iops                  = 3000
    throughput            = 125
    delete_on_termination = true
    encrypted             = true
    kms_key_id            = var.kms_key_id
  }
  # Gets the partitions of role storage; its snapshot is part of the AMI.
  launch_block_device_mappings {
    device_name           = "/dev/xvdb"
    volume_type           = "gp3"
    volume_size           = var.data_volume_gib
    iops                  = 3000
    throughput            = 125
    delete_on_termination = true
    encrypted             = true
    kms_key_id            = var.kms_key_id
  }

  tags = merge(local.tags, {
    Name      = "testudo-${var.app_version}-${var.variant}"
    SourceAMI = "{{ .SourceAMI }}"
  })
  run_tags        = merge(local.tags, { Name = "testudo-build" })
  run_volume_tags = local.tags
  snapshot_tags   = local.tags
}

# The local image: `testudo image` makes a tree, applies the play to it in isolation and packs it.
source "null" "rootfs" {
  communicator = "none"
}

# The result, booted. Packer takes the seed for the disk, so that it copies kilobytes; the image is only ever read.
source "qemu" "verify" {
  disk_image       = true
  iso_url          = "${local.scratch}/seed.img"
  iso_checksum     = "none"
  output_directory = "${local.scratch}/qemu"
  vm_name          = "unused.img"
  format           = "raw"
  disk_size        = "2M"
  skip_compaction  = true

  headless     = true
  disable_vnc  = true
  boot_wait    = "1s"
  accelerator  = "none"
  machine_type = "pc"
  cpus         = var.cpus
  memory       = var.memory_mib
  qemuargs = [
    ["-machine", "type=pc"],
    ["-accel", var.accelerator],
    ["-cpu", var.cpu],
    ["-display", "none"],
    ["-serial", "file:${var.build_dir}/logs/console.log"],
    ["-drive", "file=${local.image},format=qcow2,if=virtio,snapshot=on"],
    ["-drive", "file=${local.scratch}/seed.img,format=raw,if=virtio,readonly=on"],
    ["-netdev", "user,id=user.0,ipv6=off,hostfwd=tcp:127.0.0.1:${var.ssh_port}-:22,hostfwd=tcp:127.0.0.1:${var.https_port}-:443"],
    ["-device", "virtio-net-pci,netdev=user.0"],
    ["-device", "virtio-rng-pci"],
  ]

  communicator         = "ssh"
  ssh_username         = "admin"
  ssh_private_key_file = "${local.scratch}/key"
  host_port_min        = var.ssh_port
  host_port_max        = var.ssh_port
  ssh_timeout          = "10m"
}
