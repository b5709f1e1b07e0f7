package follow

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/keeper"
)

// TestRangesOf: the ranges of the flag and those of the host TAP that the keeper holds count together.
func TestRangesOf(t *testing.T) {
	for _, c := range []struct {
		flag, meta, pods, services string
	}{
		{"", ``, "", ""},
		{"10.244.0.0/16", ``, "10.244.0.0/16", ""},
		{"10.244.0.0/16", `{"name": "tapestry0", "mtu": 1420}`, "10.244.0.0/16", ""}, // of a version that did not record them
		{"", `{"pods": ["10.244.0.0/16", "fd00:244::/48"], "services": ["10.96.0.0/12"]}`, "10.244.0.0/16 fd00:244::/48", "10.96.0.0/12"},
		{"10.244.0.0/16", `{"pods": ["10.244.0.0/17", "10.78.0.0/16"]}`, "10.78.0.0/16 10.244.0.0/16", ""},
		{"10.244.0.0/16", `[]`, "10.244.0.0/16", ""},
	} {
		o := Options{ClusterCIDRs: addresstest.Prefixes(strings.Fields(c.flag)...)}
		if c.meta != "" {
			o.Kept = []keeper.Item{{Key: "flows"}, {Key: hosttap.Key, Meta: json.RawMessage(c.meta)}}
		}
		got := rangesOf(&o)
		if !slices.Equal(got.Pods, addresstest.Prefixes(strings.Fields(c.pods)...)) || !slices.Equal(got.Services, addresstest.Prefixes(strings.Fields(c.services)...)) {
			t.Errorf("--cluster-cidr %q, host TAP %s: %v", c.flag, c.meta, got)
		}
	}
}
