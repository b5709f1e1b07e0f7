package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// L2Advertisement has addresses of AddressPools announced by ARP and NDP: of the nodes that it selects, one at a time
// answers for an address.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=l2adv,categories=tapestry
// +kubebuilder:printcolumn:name="Pools",type=string,JSONPath=`.spec.pools`
// +kubebuilder:printcolumn:name="Interfaces",type=string,JSONPath=`.spec.interfaces`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type L2Advertisement struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec L2AdvertisementSpec `json:"spec"`
	// +optional
	Status AnnouncementStatus `json:"status,omitzero"`
}

// Announced says which addresses an advertisement is for, and on which nodes.
type Announced struct {
	// Pools are the names of the AddressPools whose addresses are announced. None: all pools.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=253
	Pools []string `json:"pools,omitempty"`

	// ServiceSelector selects the Services whose addresses are announced, by their labels. None selects all.
	//
	// +optional
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`

	// NodeSelector selects the nodes that announce, by their labels. None selects all.
	//
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
}

// L2AdvertisementSpec says what is announced by ARP and NDP, and where.
type L2AdvertisementSpec struct {
	Announced `json:",inline"`

	// Interfaces of the nodes on which addresses are announced, by name; a name that ends in * stands for all that
	// begin so. None: the interface that has the node's address.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=16
	// +kubebuilder:validation:items:MinLength=1
	Interfaces []string `json:"interfaces,omitempty"`
}

// AnnouncementStatus says how an L2Advertisement, a BGPPeer or a BGPAdvertisement is.
type AnnouncementStatus struct {
	// Conditions: Accepted is true when all of the object is understood, what it names is there, and it selects a node;
	// it says otherwise what is wrong. Degraded, of a BGPPeer, is true while nodes report that something is wrong with
	// their session. Nobody reports that a session is well: it is seen on the nodes ('tapestry status').
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Nodes is how many nodes with an agent announce by it, or have a session with the router, as far as the cluster's
	// objects say.
	//
	// +optional
	Nodes int64 `json:"nodes"`
}

// The conditions of L2Advertisements, BGPPeers and BGPAdvertisements. Only BGPPeers have Degraded.
const (
	AnnouncementAccepted = "Accepted"
	PeerDegraded         = "Degraded"
)

// The reasons for which Accepted is false.
const (
	// ReasonInvalid: something in the object is not understood, and not used.
	ReasonInvalid = "Invalid"
	// ReasonNotFound: there is no AddressPool or BGPPeer of a name in it.
	ReasonNotFound = "ReferenceNotFound"
	// ReasonAddressTaken: another BGPPeer has the address on a node that both select.
	ReasonAddressTaken = "AddressTaken"
	// ReasonNoNode: no node is selected.
	ReasonNoNode = "NoNode"
)

// L2AdvertisementList is a list of L2Advertisements.
//
// +kubebuilder:object:root=true
type L2AdvertisementList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []L2Advertisement `json:"items"`
}

// BGPPeer is a router with which nodes have a BGP session.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=tapestry
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="ASN",type=integer,JSONPath=`.spec.peerASN`
// +kubebuilder:printcolumn:name="My ASN",type=integer,JSONPath=`.spec.myASN`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Degraded",type=string,JSONPath=`.status.conditions[?(@.type=="Degraded")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BGPPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BGPPeerSpec `json:"spec"`
	// +optional
	Status AnnouncementStatus `json:"status,omitzero"`
}

// BGPPeerSpec says how a router is reached, and by which nodes.
//
// +kubebuilder:validation:XValidation:rule="!has(self.multihop) || self.myASN != self.peerASN",message="multihop is for peers of another ASN: remove it"
// +kubebuilder:validation:XValidation:rule="!has(self.sourceAddress) || ip(self.sourceAddress).family() == ip(self.address).family()",message="sourceAddress must be of the family of address"
// +kubebuilder:validation:XValidation:rule="!has(self.bfd) || !has(self.multihop)",message="bfd is for routers on the same link: remove it, or multihop"
// +kubebuilder:validation:XValidation:rule="!has(self.bfd) || !has(self.sourceAddress)",message="bfd leaves from the address that the kernel chooses: remove it, or sourceAddress"
// +kubebuilder:validation:XValidation:rule="!has(self.bfd) || !has(self.gracefulRestartSeconds) || self.gracefulRestartSeconds == 0",message="with bfd routes go as soon as the announcer ends, with gracefulRestartSeconds they stay: remove one of the two"
type BGPPeerSpec struct {
	// Address of the router, of either family.
	//
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="expected an address like 192.0.2.1"
	Address string `json:"address"`

	// Port of the router.
	//
	// +optional
	// +kubebuilder:default=179
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`

	// PeerASN is the autonomous system of the router.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	PeerASN int64 `json:"peerASN"`

	// MyASN is the autonomous system as which the nodes speak to this router.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	MyASN int64 `json:"myASN"`

	// SourceAddress is the address of the node that the session comes from, where the kernel's choice is wrong.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="expected an address like 192.0.2.1"
	SourceAddress string `json:"sourceAddress,omitempty"`

	// Multihop is how many hops a router of another ASN may be away. None: it is on the same link.
	//
	// +optional
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=255
	Multihop int32 `json:"multihop,omitempty"`

	// PasswordKey is the key in the Secret that is mounted into the announcers, of the password by which the session is
	// signed (TCP MD5, RFC 2385).
	//
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[-._a-zA-Z0-9]+$`
	PasswordKey string `json:"passwordKey,omitempty"`

	// HoldTimeSeconds is after how long without a message the session ends; a third of it is between keepalives.
	//
	// +optional
	// +kubebuilder:default=90
	// +kubebuilder:validation:Minimum=3
	// +kubebuilder:validation:Maximum=65535
	HoldTimeSeconds int32 `json:"holdTimeSeconds,omitempty"`

	// GracefulRestartSeconds is how long the router keeps the routes while an announcer is started again (RFC 4724). 0:
	// not at all.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4095
	GracefulRestartSeconds int32 `json:"gracefulRestartSeconds,omitempty"`

	// BFD has the nodes and the router notice within a second that they do not reach one another any longer (RFC 5880,
	// RFC 5881). None: after the hold time. {}: with the defaults.
	//
	// +optional
	BFD *BFD `json:"bfd,omitempty"`

	// NodeSelector selects the nodes that have a session with the router, by their labels. None selects all.
	//
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
}

// BFD says how fast a loss is noticed. Both sides say such times, and of two the longer one counts.
type BFD struct {
	// TransmitMilliseconds is the shortest time between two packets that a node sends.
	//
	// +optional
	// +kubebuilder:default=300
	// +kubebuilder:validation:Minimum=100
	// +kubebuilder:validation:Maximum=10000
	TransmitMilliseconds int32 `json:"transmitMilliseconds,omitempty"`

	// ReceiveMilliseconds is the shortest time between two packets that a node is ready for.
	//
	// +optional
	// +kubebuilder:default=300
	// +kubebuilder:validation:Minimum=100
	// +kubebuilder:validation:Maximum=10000
	ReceiveMilliseconds int32 `json:"receiveMilliseconds,omitempty"`

	// Multiplier is how many packets of a node the router has to miss before it takes the node for lost. After how many
	// of its own it is taken for lost is the router's to say.
	//
	// +optional
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=50
	Multiplier int32 `json:"multiplier,omitempty"`
}

// BGPPeerList is a list of BGPPeers.
//
// +kubebuilder:object:root=true
type BGPPeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BGPPeer `json:"items"`
}

// BGPAdvertisement has addresses of AddressPools announced by BGP: each node that it selects and that can serve an
// address tells the routers.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=bgpadv,categories=tapestry
// +kubebuilder:printcolumn:name="Pools",type=string,JSONPath=`.spec.pools`
// +kubebuilder:printcolumn:name="Peers",type=string,JSONPath=`.spec.peers`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BGPAdvertisement struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BGPAdvertisementSpec `json:"spec"`
	// +optional
	Status AnnouncementStatus `json:"status,omitzero"`
}

// BGPAdvertisementSpec says what is announced by BGP, to whom, and with which attributes.
type BGPAdvertisementSpec struct {
	Announced `json:",inline"`

	// Peers are the names of the BGPPeers that are told. None: all.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=253
	Peers []string `json:"peers,omitempty"`

	// Communities of the routes, like "65000:100" (RFC 1997), or "64500:1:2" for large ones (RFC 8092).
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=32
	// +kubebuilder:validation:items:Pattern=`^[0-9]+:[0-9]+(:[0-9]+)?$`
	Communities []string `json:"communities,omitempty"`

	// LocalPreference of the routes, for peers of the same ASN.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	LocalPreference *int64 `json:"localPreference,omitempty"`

	// AggregationLength is the length of the prefixes that are announced for IPv4 addresses.
	//
	// +optional
	// +kubebuilder:default=32
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=32
	AggregationLength int32 `json:"aggregationLength,omitempty"`

	// AggregationLengthV6 is the length of the prefixes that are announced for IPv6 addresses.
	//
	// +optional
	// +kubebuilder:default=128
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=128
	AggregationLengthV6 int32 `json:"aggregationLengthV6,omitempty"`
}

// BGPAdvertisementList is a list of BGPAdvertisements.
//
// +kubebuilder:object:root=true
type BGPAdvertisementList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BGPAdvertisement `json:"items"`
}
