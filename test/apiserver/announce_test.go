package apiserver_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/test/await"
)

// TestAnnouncementsAreValidated: an API server takes what can be announced, completes it, and refuses the rest with a
// sentence.
func TestAnnouncementsAreValidated(t *testing.T) {
	p := start(t)
	p.apply("CustomResourceDefinition")
	const group = "/apis/tapestry.dev/v1alpha1/"
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
	if err := post("BGPPeer", `{"address":"192.0.2.1","peerASN":64512,"myASN":65000}`, &peer); err != nil || peer.Spec.Port != 179 || peer.Spec.HoldTimeSeconds != 90 {
		t.Errorf("%v, %+v", err, peer.Spec)
	}
	if err := post("BGPAdvertisement", `{}`, &adv); err != nil || adv.Spec.AggregationLength != 32 || adv.Spec.AggregationLengthV6 != 128 {
		t.Errorf("%v, %+v", err, adv.Spec)
	}
}
