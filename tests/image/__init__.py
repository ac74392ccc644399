"""What the appliance promises, checked on a container of the tree, a booted image or an EC2 instance.

    pytest tests/image --hosts=podman://NAME -m "not booted"
    pytest tests/image --hosts=ssh://NAME --ssh-config=FILE --sudo --base-url=https://127.0.0.1:8443

Commands run as root. Unmarked tests look at files only; `running` ones need the services, `booted` ones a
real boot.
"""
