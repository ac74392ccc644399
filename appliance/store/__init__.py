"""What the appliance remembers: the database behind its tenant walls, the job queue, counters and objects."""
