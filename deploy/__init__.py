"""What the desk is shipped with and watched by: images, compose, Kubernetes, Prometheus, Grafana."""
