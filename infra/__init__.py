"""How it is deployed: the local stack, Prefect deployments, containers, Kubernetes, access policies."""
