"""The command line: arguments and YAML to a configuration, a job to its exit code and summary."""
