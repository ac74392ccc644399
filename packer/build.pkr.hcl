build {
  name    = "testudo"
  sources = ["source.amazon-ebs.gpu", "source.null.rootfs", "source.qemu.verify"]

  # Local: the steps in order; each is a command that can be run by hand.
  provisioner "shell-local" {
    only    = ["null.rootfs"]
    command = "${var.testudo} image wheelhouse"
  }
  provisioner "shell-local" {
    only    = ["null.rootfs"]
    command = "${var.testudo} image base"
  }
  provisioner "shell-local" {
    only    = ["null.rootfs"]
    command = "${var.testudo} image platform"
  }
  provisioner "shell-local" {
    only    = ["null.rootfs"]
    command = "${var.testudo} image converge"
  }
  provisioner "shell-local" {
    only    = ["null.rootfs"]
    command = "${var.testudo} image disk"
  }

  # The image suite, or the audit, against the booted machine, from this host through ssh and TLS.
  provisioner "shell-local" {
    only    = ["qemu.verify"]
    command = "${var.testudo} image ${var.inspection} --https-port=${var.https_port} --started=${var.started}"
  }

  # AWS: the same wheels and the same play, on the instance.
  provisioner "shell" {
    only = ["amazon-ebs.gpu"]
    inline = [
      "cloud-init status --wait",
      "sudo install -d -m 0755 /run/testudo",
      "sudo install -d -m 0755 -o admin /run/testudo/wheelhouse",
    ]
  }
  # Into /run, so that nothing of it is in the image.
  provisioner "file" {
    only        = ["amazon-ebs.gpu"]
    source      = "${var.build_dir}/wheelhouse/"
    destination = "/run/testudo/wheelhouse"
  }
  provisioner "ansible" {
    only             = ["amazon-ebs.gpu"]
    playbook_file    = "ansible/site.yml"
    user             = "admin"
    use_proxy        = false
    extra_arguments  = ["--extra-vars", "voice_wheelhouse=/run/testudo/wheelhouse storage_device=blank testudo_variant=${var.variant}"]
    ansible_env_vars = ["ANSIBLE_CONFIG=ansible/ansible.cfg"]
  }

  post-processor "manifest" {
    only       = ["amazon-ebs.gpu"]
    output     = "${var.build_dir}/ami-manifest.json"
    strip_path = true
    custom_data = {
      version = var.app_version
      variant = var.variant
    }
  }
}
