// Package policyapi has ClusterNetworkPolicy, of the group policy.networking.k8s.io (network-policy-api v0.3.0), as
// agents read it. Its versions v1beta1 and v1alpha2 say the same.
//
// The types are our own since a policy must fail closed where it is newer than its reader: an object that is decoded
// here knows which of its fields were not understood. They have no validation: the API server's definition of the kind
// has.
package policyapi
