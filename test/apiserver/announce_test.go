package apiserver_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/test/await"
)

// TestAnnouncementsAreValidated: an API server takes what can be announced, completes it, and refuses the rest with a
// sentence.
func TestAnnouncementsAreValidated(t *testing.T) {
	p := start(t)
	p.apply("CustomResourceDefinition")
	await.Until(t, "the kinds to be served", func() bool {
		for _, list := range []string{"l2advertisements", "bgppeers", "bgpadvertisements", "egressaddresses"} {
			if p.call(http.MethodGet, group+list, nil, nil) != nil {
				return false
			}
		}
		return true
	})
	n := 0
	post := func(kind, spec string, into any) error {
		n++
		return p.call(http.MethodPost, group+kube.KindNamed(kind).Resource(), json.RawMessage(fmt.Sprintf(`{"apiVersion":"tapestry.dev/v1alpha1","kind":%q,"metadata":{"name":"a%d"},"spec":%s}`, kind, n, spec)), into)
	}
	for _, tt := range []struct{ kind, spec, want string }{
		{"L2Advertisement", `{"pools":["a"],"interfaces":["eth1","bond*"],"nodeSelector":{"matchLabels":{"rack":"a"}}}`, ""},
		{"L2Advertisement", `{"interfaces":["a-name-that-is-too-long"]}`, "spec.interfaces[0]: Too long"},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000,"multihop":2,"sourceAddress":"192.0.2.9"}`, ""},
		{"BGPPeer", `{"address":"2001:db8::1","peerASN":4294967295,"myASN":65000,"passwordKey":"tor.1"}`, ""},
		{"BGPPeer", `{"address":"router","peerASN":64512,"myASN":65000}`, "expected an address like 192.0.2.1"},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":0,"myASN":65000}`, "spec.peerASN"},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":65000,"myASN":65000,"multihop":2}`, "multihop is for peers of another ASN: remove it"},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000,"sourceAddress":"2001:db8::1"}`, "sourceAddress must be of the family of address"},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000,"passwordKey":"../a"}`, "spec.passwordKey"},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000,"bfd":{"transmitMilliseconds":100,"multiplier":5},"gracefulRestartSeconds":0}`, ""},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000,"bfd":{"receiveMilliseconds":50}}`, "spec.bfd.receiveMilliseconds"},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000,"bfd":{"multiplier":1}}`, "spec.bfd.multiplier"},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000,"bfd":{},"multihop":2}`, "bfd is for routers on the same link: remove it, or multihop"},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000,"bfd":{},"sourceAddress":"192.0.2.9"}`, "bfd leaves from the address that the kernel chooses: remove it, or sourceAddress"},
		{"BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000,"bfd":{},"gracefulRestartSeconds":9}`, "with bfd routes go as soon as the announcer ends"},
		{"BGPAdvertisement", `{"communities":["65000:1","65000:1:2"],"localPreference":0}`, ""},
		{"BGPAdvertisement", `{"communities":["no-export"]}`, "spec.communities[0]"},
		{"BGPAdvertisement", `{"aggregationLength":33}`, "spec.aggregationLength"},
		{"EgressAddress", `{"addresses":["192.0.2.1","2001:db8::1"],"namespaces":["shop"],"podSelector":{"matchLabels":{"a":"b"}},"interfaces":["bond*"]}`, ""},
		{"EgressAddress", `{"addresses":["2001:db8::1"],"namespaces":["shop"]}`, ""},
		{"EgressAddress", `{"addresses":["192.0.2.1","192.0.2.2"],"namespaces":["shop"]}`, "two addresses must be one of IPv4 and one of IPv6"},
		{"EgressAddress", `{"addresses":["192.0.2.0/24"],"namespaces":["shop"]}`, "expected an address like 192.0.2.1"},
		{"EgressAddress", `{"addresses":["192.0.2.1","nonsense"],"namespaces":["shop"]}`, "expected an address like 192.0.2.1"},
		{"EgressAddress", `{"addresses":[],"namespaces":["shop"]}`, "spec.addresses"},
		{"EgressAddress", `{"addresses":["192.0.2.1"],"namespaces":[]}`, "spec.namespaces"},
		{"EgressAddress", `{"addresses":["192.0.2.1"]}`, "spec.namespaces"},
	} {
		err := post(tt.kind, tt.spec, nil)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s %s: %v, want %q", tt.kind, tt.spec, err, tt.want)
		}
	}
	var peer v1alpha1.BGPPeer
	var adv v1alpha1.BGPAdvertisement
	if err := post("BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000}`, &peer); err != nil || peer.Spec.Port != 179 || peer.Spec.HoldTimeSeconds != 90 || peer.Spec.BFD != nil {
		t.Errorf("%v, %+v", err, peer.Spec)
	}
	if err := post("BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000,"bfd":{}}`, &peer); err != nil || *peer.Spec.BFD != (v1alpha1.BFD{TransmitMilliseconds: 300, ReceiveMilliseconds: 300, Multiplier: 3}) {
		t.Errorf("%v, %+v", err, peer.Spec.BFD)
	}
	if err := post("BGPAdvertisement", `{}`, &adv); err != nil || adv.Spec.AggregationLength != 32 || adv.Spec.AggregationLengthV6 != 128 {
		t.Errorf("%v, %+v", err, adv.Spec)
	}
}

// TestAnnouncementStatus: with the rights of the manifests, a controller says on L2Advertisements, BGPPeers and
// BGPAdvertisements how they stand and what nodes report, in the columns that are printed too, and writes nothing while
// nothing changes.
func TestAnnouncementStatus(t *testing.T) {
	p := start(t)
	p.controllerRights()
	p.node("n1", "192.0.2.1")
	stop := newProcess(t, p, "c1").decides(t)
	for _, obj := range []struct{ kind, name, spec string }{
		{"L2Advertisement", "lan", `{"pools":["public"]}`},
		{"BGPPeer", "tor", `{"address":"203.0.113.1","peerASN":64512,"myASN":65000,"passwordKey":"tor"}`},
		{"BGPAdvertisement", "hosts", `{"peers":["tor","spine"],"nodeSelector":{"matchLabels":{"rack":"z"}}}`},
	} {
		p.must(http.MethodPost, group+kube.KindNamed(obj.kind).Resource(), json.RawMessage(fmt.Sprintf(`{"apiVersion":"tapestry.dev/v1alpha1","kind":%q,"metadata":{"name":%q},"spec":%s}`, obj.kind, obj.name, obj.spec)), nil)
	}
	type object struct {
		metav1.ObjectMeta `json:"metadata"`
		Status            v1alpha1.AnnouncementStatus `json:"status"`
	}
	// is waits until an object has a condition with a text in it, for its present generation, and returns the object.
	is := func(list, name, condition, reason, text string) (o object) {
		t.Helper()
		await.Until(t, name+" to say "+condition+" "+reason, func() bool {
			o = object{}
			p.must(http.MethodGet, group+list+"/"+name, nil, &o)
			c := apimeta.FindStatusCondition(o.Status.Conditions, condition)
			return c != nil && c.Reason == reason && strings.Contains(c.Message, text) && c.ObservedGeneration == o.Generation && !c.LastTransitionTime.IsZero()
		})
		return o
	}
	is("l2advertisements", "lan", v1alpha1.AnnouncementAccepted, v1alpha1.ReasonNotFound, `there is no AddressPool "public"`)
	if o := is("bgppeers", "tor", v1alpha1.PeerDegraded, "NothingReported", ""); o.Status.Nodes != 1 || !apimeta.IsStatusConditionTrue(o.Status.Conditions, v1alpha1.AnnouncementAccepted) {
		t.Errorf("the BGPPeer says %+v", o.Status)
	}
	if o := is("bgpadvertisements", "hosts", v1alpha1.AnnouncementAccepted, v1alpha1.ReasonNotFound, `spec.peers: there is no BGPPeer "spine"`); o.Status.Nodes != 0 {
		t.Errorf("the BGPAdvertisement says %+v", o.Status)
	}

	// What is wrong is put right, and a node reports a fault, as its agent does.
	p.must(http.MethodPost, addressPools, addressPool("public", v1alpha1.AddressPoolSpec{Addresses: []string{"198.51.100.0/28"}}), nil)
	p.must(http.MethodPatch, group+"bgpadvertisements/hosts", map[string]any{"spec": map[string]any{"peers": []string{"tor"}, "nodeSelector": nil}}, nil)
	status := kube.NodeStatus{Problems: []kube.Problem{{Severity: kube.Error, Object: kube.Ref{Kind: "BGPPeer", Name: "tor"}, Message: "on node n1: no session", Reason: kube.SessionFault}}}
	p.must(http.MethodPatch, "/api/v1/nodes/n1", map[string]any{"metadata": map[string]any{"annotations": status.Annotations()}}, nil)
	is("l2advertisements", "lan", v1alpha1.AnnouncementAccepted, "Accepted", "")
	hosts := is("bgpadvertisements", "hosts", v1alpha1.AnnouncementAccepted, "Accepted", "")
	tor := is("bgppeers", "tor", v1alpha1.PeerDegraded, kube.SessionFault, "one node reports it: node n1: no session")
	if hosts.Generation != 2 || tor.Generation != 1 {
		t.Errorf("the generations are %d and %d: a status counts as a change of the spec", hosts.Generation, tor.Generation)
	}

	// A decision about something else writes none of them again.
	p.must(http.MethodPost, services, loadBalancer("a"), nil)
	p.addressOf("a")
	stop()
	newProcess(t, p, "c2").decides(t)
	p.must(http.MethodPost, services, loadBalancer("b"), nil)
	p.addressOf("b")
	for _, before := range []struct {
		list string
		object
	}{{"bgpadvertisements", hosts}, {"bgppeers", tor}} {
		var now object
		p.must(http.MethodGet, group+before.list+"/"+before.Name, nil, &now)
		if now.ResourceVersion != before.ResourceVersion {
			t.Errorf("%s is written again: %+v", before.Name, now.Status)
		}
	}

	// Nobody else may write it: an agent may not, nor may the controller change a spec.
	for who, path := range map[string]string{"tapestry": "/status", "tapestry-controller": ""} {
		err := p.as(p.credentialsOf(who, "n1")).call(http.MethodPatch, group+"bgppeers/tor"+path, map[string]any{"metadata": map[string]any{"labels": map[string]string{"a": "b"}}}, nil)
		if err == nil || !strings.Contains(err.Error(), "forbidden") {
			t.Errorf("%s: %v, want it forbidden", who, err)
		}
	}

	var table metav1.Table
	printed, err := p.rest.Get().AbsPath(group+"bgppeers/tor").SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Do(t.Context()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(printed, &table); err != nil {
		t.Fatal(err)
	}
	var columns []string
	for i, c := range table.ColumnDefinitions {
		if c.Name != "Age" {
			columns = append(columns, fmt.Sprintf("%s=%v", c.Name, table.Rows[0].Cells[i]))
		}
	}
	if got, want := strings.Join(columns, " "), "Name=tor Address=203.0.113.1 ASN=64512 My ASN=65000 Nodes=1 Accepted=True Degraded=True"; got != want {
		t.Errorf("printed are %s, want %s", got, want)
	}
}
