package policyapi

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/json"
)

// ClusterNetworkPolicy says who may talk to whom, in the whole cluster.
type ClusterNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec Spec `json:"spec"`
	// Status is not read.
	Status Status `json:"status,omitzero"`
}

// The tiers.
const (
	Admin    = "Admin"
	Baseline = "Baseline"
)

// Spec is what a policy says.
type Spec struct {
	Tier     string  `json:"tier"`
	Priority int32   `json:"priority"` // 0 to 1000, the smaller first
	Subject  Subject `json:"subject"`
	Ingress  []Rule  `json:"ingress,omitempty"`
	Egress   []Rule  `json:"egress,omitempty"`
	// Unread says what of it was not understood, in words. No API has the field: it is there for what agents save.
	Unread []string `json:"unread,omitempty"`
}

// Subject says for which pods a policy is, by one of its fields.
type Subject struct {
	Namespaces *metav1.LabelSelector `json:"namespaces,omitempty"`
	Pods       *NamespacedPod        `json:"pods,omitempty"`
}

// NamespacedPod selects pods in namespaces.
type NamespacedPod struct {
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
	PodSelector       metav1.LabelSelector `json:"podSelector"`
}

// The actions.
const (
	ActionAccept = "Accept"
	ActionDeny   = "Deny"
	ActionPass   = "Pass"
)

// Rule is a rule of a policy, with From for ingress and To for egress.
type Rule struct {
	Name      string     `json:"name,omitempty"`
	Action    string     `json:"action"`
	From      []Peer     `json:"from,omitempty"`
	To        []Peer     `json:"to,omitempty"`
	Protocols []Protocol `json:"protocols,omitempty"`
	// Unread is as of Spec, for what is in the rule.
	Unread []string `json:"unread,omitempty"`
}

// Peer is a group of other ends, by one of its fields. Of ingress, they are Namespaces and Pods alone.
type Peer struct {
	Namespaces  *metav1.LabelSelector `json:"namespaces,omitempty"`
	Pods        *NamespacedPod        `json:"pods,omitempty"`
	Nodes       *metav1.LabelSelector `json:"nodes,omitempty"`
	Networks    []string              `json:"networks,omitempty"`
	DomainNames []string              `json:"domainNames,omitempty"`
}

// Protocol is a protocol with ports, by one of its fields.
type Protocol struct {
	TCP                  *Ports `json:"tcp,omitempty"`
	UDP                  *Ports `json:"udp,omitempty"`
	SCTP                 *Ports `json:"sctp,omitempty"`
	DestinationNamedPort string `json:"destinationNamedPort,omitempty"`
}

// Ports are the ports of a protocol.
type Ports struct {
	DestinationPort *Port `json:"destinationPort,omitempty"`
}

// Port is a number or a range.
type Port struct {
	Number int32      `json:"number,omitempty"`
	Range  *PortRange `json:"range,omitempty"`
}

// PortRange are the ports from Start to End, both included.
type PortRange struct {
	Start int32 `json:"start"`
	End   int32 `json:"end"`
}

// Status is what implementations tell of a policy.
type Status struct {
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ClusterNetworkPolicyList is a list of ClusterNetworkPolicies.
type ClusterNetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterNetworkPolicy `json:"items"`
}

// UnmarshalJSON reads a spec, and notes what it does not understand outside of its rules.
func (s *Spec) UnmarshalJSON(data []byte) (err error) {
	type plain Spec
	unread, err := understand(data, (*plain)(s))
	s.Unread = append(s.Unread, unread...)
	return err
}

// UnmarshalJSON reads a rule, and notes what it does not understand of it.
func (r *Rule) UnmarshalJSON(data []byte) (err error) {
	type plain Rule
	unread, err := understand(data, (*plain)(r))
	r.Unread = append(r.Unread, unread...)
	return err
}

// understand decodes JSON, and returns what of it has no place.
func understand(data []byte, into any) (unread []string, err error) {
	strict, err := json.UnmarshalStrict(data, into)
	for _, e := range strict {
		unread = append(unread, e.Error())
	}
	return unread, err
}

// DeepCopy returns a copy that shares nothing with p.
func (p *ClusterNetworkPolicy) DeepCopy() *ClusterNetworkPolicy {
	out := &ClusterNetworkPolicy{TypeMeta: p.TypeMeta, ObjectMeta: *p.ObjectMeta.DeepCopy(), Spec: p.Spec}
	s := &out.Spec
	s.Subject = Subject{p.Spec.Subject.Namespaces.DeepCopy(), p.Spec.Subject.Pods.deepCopy()}
	s.Ingress, s.Egress = each(s.Ingress, Rule.deepCopy), each(s.Egress, Rule.deepCopy)
	s.Unread = each(s.Unread, same)
	out.Status.Conditions = each(p.Status.Conditions, func(c metav1.Condition) metav1.Condition { return *c.DeepCopy() })
	return out
}

// DeepCopyObject implements runtime.Object.
func (p *ClusterNetworkPolicy) DeepCopyObject() runtime.Object { return p.DeepCopy() }

// DeepCopyObject implements runtime.Object.
func (l *ClusterNetworkPolicyList) DeepCopyObject() runtime.Object {
	return &ClusterNetworkPolicyList{
		TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy(),
		Items: each(l.Items, func(p ClusterNetworkPolicy) ClusterNetworkPolicy { return *p.DeepCopy() }),
	}
}

func (r Rule) deepCopy() Rule {
	r.From, r.To, r.Protocols, r.Unread = each(r.From, Peer.deepCopy), each(r.To, Peer.deepCopy), each(r.Protocols, Protocol.deepCopy), each(r.Unread, same)
	return r
}

func (p Peer) deepCopy() Peer {
	return Peer{p.Namespaces.DeepCopy(), p.Pods.deepCopy(), p.Nodes.DeepCopy(), each(p.Networks, same), each(p.DomainNames, same)}
}

func (p Protocol) deepCopy() Protocol {
	p.TCP, p.UDP, p.SCTP = p.TCP.deepCopy(), p.UDP.deepCopy(), p.SCTP.deepCopy()
	return p
}

func (p *Ports) deepCopy() *Ports {
	if p == nil || p.DestinationPort == nil {
		return copied(p)
	}
	port := *p.DestinationPort
	port.Range = copied(port.Range)
	return &Ports{&port}
}

func (p *NamespacedPod) deepCopy() *NamespacedPod {
	if p == nil {
		return nil
	}
	return &NamespacedPod{*p.NamespaceSelector.DeepCopy(), *p.PodSelector.DeepCopy()}
}

func copied[T any](p *T) *T {
	if p == nil {
		return nil
	}
	out := *p
	return &out
}

func same[T any](v T) T { return v }

// each returns what of makes of the elements of a list; nil of nil.
func each[T any](list []T, of func(T) T) []T {
	if list == nil {
		return nil
	}
	out := make([]T, len(list))
	for i, v := range list {
		out[i] = of(v)
	}
	return out
}
