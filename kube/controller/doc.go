// Package controller does what the control plane of Kubernetes does around a network, where there is none: in a lab,
// and when manifests are checked. It gives Services their addresses and node ports (Allocate), their endpoints
// (EndpointSlices), and Ingresses their status (IngressStatus). Each is a pure function of the objects.
package controller
