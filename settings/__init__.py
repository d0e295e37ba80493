"""What every program shares: options and recipes as dataclasses, exit codes and one line for mistakes, worker processes."""
