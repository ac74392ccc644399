# Variables of all sources. `testudo image build` sets the first group; the rest comes from vars/<variant>.pkrvars.hcl.

variable "testudo" {
  type        = string
  description = "The command whose `image` steps the local sources run."
  default     = ".venv/bin/testudo"
}

variable "app_version" {
  type        = string
  description = "Version of the distribution that is built in; part of the image's name."
  default     = "0.0.0"
}

variable "build_dir" {
  type        = string
  description = "Folder of the build, with the wheelhouse, the seed and the finished image."
  default     = "build"
}

variable "accelerator" {
  type        = string
  description = "QEMU's accelerator for the verification, as `-accel` takes it."
  default     = "tcg,thread=multi"
}

variable "cpu" {
  type        = string
  description = "QEMU's CPU model for the verification; `host` under KVM."
  default     = "max"
}

variable "ssh_port" {
  type        = number
  description = "Free port of 127.0.0.1 that leads to the verified machine's ssh."
  default     = 52222
}

variable "https_port" {
  type        = number
  description = "Free port of 127.0.0.1 that leads to the verified machine's nginx."
  default     = 54443
}

variable "inspection" {
  type        = string
  description = "What `testudo image` does in the verified machine: `suite` or `inspect` (the audit)."
  default     = "suite"
}

variable "started" {
  type        = number
  description = "When the verification began, in seconds since the epoch; from it the time to ssh is told."
  default     = 0
}

variable "variant" {
  type        = string
  description = "What the image is for: `cpu` or `gpu`."
  default     = "cpu"

  validation {
    condition     = contains(["cpu", "gpu"], var.variant)
    error_message = "The variant is cpu or gpu."
  }
}

variable "memory_mib" {
  type        = number
  description = "Memory of the verified machine in MiB."
  default     = 3072
}

variable "cpus" {
  type        = number
  description = "Processors of the verified machine."
  default     = 2
}

variable "region" {
  type        = string
  description = "AWS region of the AMI."
  default     = "eu-central-1"
}

variable "instance_type" {
  type        = string
  description = "EC2 type on which the AMI is built; a GPU type for the gpu variant, since its driver is tried."
  default     = "m7i.large"
}

variable "subnet_id" {
  type        = string
  description = "Private subnet of the build instance: no public IP, reached through Session Manager."
  default     = ""
}

variable "security_group_id" {
  type        = string
  description = "Security group of the build instance, with no ingress. Given, Packer opens no port 22 of its own."
  default     = ""
}

variable "instance_profile" {
  type        = string
  description = "Instance profile with AmazonSSMManagedInstanceCore, by which Session Manager reaches the instance."
  default     = ""
}

variable "kms_key_id" {
  type        = string
  description = "Customer-managed key that encrypts the AMI's snapshot."
  default     = ""
}

variable "root_volume_gib" {
  type        = number
  description = "Size of the AMI's root volume in GiB."
  default     = 16
}

variable "data_volume_gib" {
  type        = number
  description = "Size in GiB of the AMI's second volume: /home, /var and what is in it. Larger ones at launch are used."
  default     = 16
}

variable "environment" {
  type        = string
  description = "Value of the tag Environment."
  default     = "build"
}

variable "owner" {
  type        = string
  description = "Value of the tag Owner: who answers for the image."
  default     = "platform"
}

variable "data_sensitivity" {
  type        = string
  description = "Value of the tag DataSensitivity; an image holds no data of anybody."
  default     = "internal"
}
