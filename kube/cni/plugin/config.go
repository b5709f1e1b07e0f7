package plugin

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"tapestry.dev/tapestry/kube/cni"
)

// DefaultSocket is the path of the agent's socket unless the network configuration says otherwise.
const DefaultSocket = "/run/tapestry/agent.sock"

// defaultPatience is how long ADD waits for an agent that is away.
const defaultPatience = 5 * time.Second

// config is the network configuration, as far as the plugin uses it.
type config struct {
	CNIVersion string    `json:"cniVersion"`
	Name       string    `json:"name"`
	DNS        types.DNS `json:"dns"`
	// Socket is the path of the agent's socket.
	Socket string `json:"socket"`
	// Patience is how many seconds ADD waits for an agent that is away; nil means defaultPatience.
	Patience      *float64 `json:"patience"`
	RuntimeConfig struct {
		PortMappings []cni.PortMapping `json:"portMappings"`
		Bandwidth    *cni.Bandwidth    `json:"bandwidth"`
		IPs          []string          `json:"ips"`
	} `json:"runtimeConfig"`
	PrevResult json.RawMessage `json:"prevResult"`
	// Valid lists the attachments that GC leaves alone. ValidOld is the same list, under the name that the
	// specification had first.
	Valid    *[]cni.Attachment `json:"cni.dev/valid-attachments"`
	ValidOld *[]cni.Attachment `json:"cni.dev/attachments"`
}

func readConfig(text []byte) (*config, error) {
	c := config{Socket: DefaultSocket}
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "the network configuration cannot be read", err.Error())
	}
	if c.Socket == "" {
		c.Socket = DefaultSocket
	}
	if !strings.HasPrefix(c.Socket, "/") {
		return nil, invalid("socket", "%q is not an absolute path", c.Socket)
	}
	if c.Patience != nil && (*c.Patience < 0 || *c.Patience > 60) {
		return nil, invalid("patience", "%v is not within 0 and 60 seconds", *c.Patience)
	}
	return &c, nil
}

func invalid(field, format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s: "+format, append([]any{field}, args...)...), "")
}

func (c *config) patience() time.Duration {
	if c.Patience != nil {
		return time.Duration(*c.Patience * float64(time.Second))
	}
	return defaultPatience
}

func (c *config) valid() ([]cni.Attachment, error) {
	switch {
	case c.Valid != nil:
		return *c.Valid, nil
	case c.ValidOld != nil:
		return *c.ValidOld, nil
	}
	// A missing list must not be taken for an empty one, which would say that no attachment is left.
	return nil, invalid("cni.dev/valid-attachments", "the runtime did not say which attachments it has")
}

// pod returns the pod that the runtime means. Runtimes other than those of Kubernetes name only containers.
func (c *config) pod(args *skel.CmdArgs) (cni.Pod, error) {
	p := cni.Pod{
		Namespace: cni.WithoutObject + c.Name, Name: args.ContainerID, ContainerID: args.ContainerID,
		Network: c.Name, IfName: args.IfName, Netns: args.Netns,
		PortMappings: c.RuntimeConfig.PortMappings, Bandwidth: c.RuntimeConfig.Bandwidth,
	}
	given := map[string]string{}
	for pair := range strings.SplitSeq(args.Args, ";") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			given[key] = value
		}
	}
	if ns, name := given["K8S_POD_NAMESPACE"], given["K8S_POD_NAME"]; ns != "" && name != "" {
		p.Namespace, p.Name, p.UID = ns, name, given["K8S_POD_UID"]
		if !p.OfKubernetes() { // a namespace of Kubernetes has no dot
			return p, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: K8S_POD_NAMESPACE %q is no namespace of Kubernetes", ns), "")
		}
	}
	for _, text := range c.RuntimeConfig.IPs {
		text, _, _ := strings.Cut(text, "/") // some runtimes add a prefix length, which has no meaning here
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return p, invalid("runtimeConfig.ips", "%q is not an address: expected one like 10.244.1.5", text)
		}
		p.Addrs = append(p.Addrs, a.Unmap())
	}
	return p, nil
}
