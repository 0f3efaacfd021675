"""Answer `POST /generate` from a checkpoint: gateway, queue, worker, engine."""
