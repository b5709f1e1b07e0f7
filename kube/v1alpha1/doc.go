// Package v1alpha1 has the kinds of the group tapestry.dev, which people write to tell a cluster's network what
// Kubernetes' own kinds have no words for.
//
// The deep copies, and the definitions in deploy/chart/definitions that an API server validates objects by, are made
// from the types here: run 'go generate ./kube/v1alpha1' after a change.
//
// +kubebuilder:object:generate=true
// +groupName=tapestry.dev
package v1alpha1

//go:generate go run sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0 object crd paths=. output:crd:dir=../../deploy/chart/definitions
