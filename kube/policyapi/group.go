package policyapi

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group is the name of the group, and Version and Older the versions of the kind that are read.
const (
	Group   = "policy.networking.k8s.io"
	Version = "v1beta1"
	Older   = "v1alpha2"
)

// AddToScheme registers the kind in both versions with s.
func AddToScheme(s *runtime.Scheme) error {
	for _, version := range []string{Version, Older} { // what is written is of the first
		gv := schema.GroupVersion{Group: Group, Version: version}
		s.AddKnownTypes(gv, &ClusterNetworkPolicy{}, &ClusterNetworkPolicyList{})
		metav1.AddToGroupVersion(s, gv)
	}
	return nil
}
