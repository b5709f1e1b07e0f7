// Package controlplane does the part of Kubernetes' control plane that a network needs, where there is no control
// plane: in a lab, and when manifests are checked. It gives Services their addresses and node ports (Allocate) and
// their endpoints (EndpointSlices). Each is a pure function of the objects.
package controlplane
