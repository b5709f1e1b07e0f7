package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressPool is a set of addresses for Services of type LoadBalancer.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=pool,categories=tapestry
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
// +kubebuilder:printcolumn:name="Auto",type=boolean,JSONPath=`.spec.autoAssign`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Assigned",type=integer,JSONPath=`.status.assigned`
// +kubebuilder:printcolumn:name="Free",type=integer,JSONPath=`.status.free`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec AddressPoolSpec `json:"spec"`
	// +optional
	Status AddressPoolStatus `json:"status,omitzero"`
}

// AddressPoolSpec says which addresses a pool has, and for whom.
//
// +kubebuilder:validation:XValidation:rule="has(self.addresses) != has(self.nodes)",message="a pool has either addresses or nodes: set one of the two"
type AddressPoolSpec struct {
	// Addresses of both families, each a prefix like "192.0.2.0/28", a range like "192.0.2.10-192.0.2.19", or one
	// address. They must be none of pods, Services or nodes.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=91
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) || isIP(self) || (self.split('-').size() == 2 && self.split('-').all(a, isIP(a)))",message="expected a prefix like 192.0.2.0/28, a range like 192.0.2.10-192.0.2.19, or an address"
	Addresses []string `json:"addresses,omitempty"`

	// Nodes whose own addresses are the pool: their agents serve a Service on sockets of the host, which needs no right
	// and no route. Several Services share an address on different ports. An empty selector is for all nodes.
	//
	// +optional
	Nodes *metav1.LabelSelector `json:"nodes,omitempty"`

	// AutoAssign gives addresses also to Services that do not ask for this pool or one of its addresses.
	//
	// +optional
	// +kubebuilder:default=true
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// Priority among the pools for a Service: the pool with the lowest number comes first, then the first by name.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	Priority int32 `json:"priority,omitempty"`

	// AvoidBuggyIPs leaves out IPv4 addresses that end in .0 or .255, which some old devices drop.
	//
	// +optional
	AvoidBuggyIPs bool `json:"avoidBuggyIPs,omitempty"`

	// NamespaceSelector selects the namespaces whose Services may have addresses of the pool, by their labels. None
	// selects all.
	//
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// ServiceSelector selects the Services that may have addresses of the pool, by their labels. None selects all.
	//
	// +optional
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`
}

// AddressPoolStatus says how a pool is.
type AddressPoolStatus struct {
	// Conditions: Ready is true when all addresses of the pool can be assigned, and says otherwise which cannot, and
	// why. Free is true while the pool has an address to give.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Assigned is the number of the pool's addresses that Services have.
	//
	// +optional
	Assigned int64 `json:"assigned"`
	// Free is the number of addresses that can still be assigned. Numbers that a JSON number cannot hold are 2^53-1.
	//
	// +optional
	Free int64 `json:"free"`
}

// The conditions of an AddressPool.
const (
	PoolReady = "Ready"
	PoolFree  = "Free"
)

// AddressPoolList is a list of AddressPools.
//
// +kubebuilder:object:root=true
type AddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AddressPool `json:"items"`
}
