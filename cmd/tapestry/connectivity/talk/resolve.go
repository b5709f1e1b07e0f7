package talk

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
)

// Resolve asks the pod's resolver. kind is "host", "srv", "ptr", "cname" or "txt". The search path applies.
func Resolve(ctx context.Context, kind, name string) ([]string, error) {
	r := &net.Resolver{PreferGo: true}
	var out []string
	var err error
	switch kind {
	case "host":
		out, err = r.LookupHost(ctx, name)
	case "srv":
		var srvs []*net.SRV
		_, srvs, err = r.LookupSRV(ctx, "", "", name)
		for _, s := range srvs {
			out = append(out, fmt.Sprintf("%s:%d", strings.TrimSuffix(s.Target, "."), s.Port))
		}
	case "ptr":
		out, err = r.LookupAddr(ctx, name)
	case "cname":
		var c string
		c, err = r.LookupCNAME(ctx, name)
		out = append(out, c)
	case "txt":
		out, err = r.LookupTXT(ctx, name)
	default:
		return nil, fmt.Errorf("resolve %q: expected host, srv, ptr, cname or txt", kind)
	}
	if err != nil {
		return nil, err
	}
	for i := range out {
		out[i] = strings.TrimSuffix(out[i], ".")
	}
	slices.Sort(out)
	return out, nil
}
