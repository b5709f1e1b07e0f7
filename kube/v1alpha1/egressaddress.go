package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// EgressAddress is the address from which the network outside sees pods, wherever they run. One node at a time is its
// gateway: it announces the address by ARP and NDP, and what the pods send leaves by it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=egress,categories=tapestry
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
// +kubebuilder:printcolumn:name="Namespaces",type=string,JSONPath=`.spec.namespaces`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type EgressAddress struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec EgressAddressSpec `json:"spec"`
	// +optional
	Status EgressAddressStatus `json:"status,omitzero"`
}

// EgressAddressSpec says which pods leave the cluster from which address, and by which nodes.
//
// +kubebuilder:validation:XValidation:rule="self.addresses.size() == 1 || !isIP(self.addresses[0]) || !isIP(self.addresses[1]) || ip(self.addresses[0]).family() != ip(self.addresses[1]).family()",message="two addresses must be one of IPv4 and one of IPv6"
type EgressAddressSpec struct {
	// Addresses are one of IPv4, or one of IPv6, or one of each. What the pods send to the outside in the other family is
	// refused. They lie in the ranges that the nodes route into their host TAPs, and are none of pods, Services or nodes.
	//
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=45
	// +kubebuilder:validation:items:XValidation:rule="isIP(self)",message="expected an address like 192.0.2.1"
	Addresses []string `json:"addresses"`

	// Namespaces are the names of those whose pods leave from the addresses.
	//
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	Namespaces []string `json:"namespaces"`

	// PodSelector selects pods of the namespaces, by their labels. None selects all.
	//
	// +optional
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`

	// NodeSelector selects the nodes that can be the gateway, by their labels. None selects all.
	//
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// Interfaces of the gateway on which the addresses are announced, by name; a name that ends in * stands for all that
	// begin so. None: the interface that has the node's address.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=16
	// +kubebuilder:validation:items:MinLength=1
	Interfaces []string `json:"interfaces,omitempty"`
}

// EgressAddressStatus says how an egress address is.
type EgressAddressStatus struct {
	// Conditions: Ready is true when the addresses can be used and there are nodes that can be the gateway; it says
	// otherwise why not. Which node is the gateway is seen on the nodes ('tapestry status'), since it changes within a
	// second.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// EgressReady is the condition of an EgressAddress.
const EgressReady = "Ready"

// EgressAddressList is a list of EgressAddresses.
//
// +kubebuilder:object:root=true
type EgressAddressList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []EgressAddress `json:"items"`
}
