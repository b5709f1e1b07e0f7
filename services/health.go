package services

// HealthCheck is what a load balancer is told about one Service whose external traffic policy is Local.
type HealthCheck struct {
	Namespace, Name string
	// Port is the node's port on which it is told.
	Port uint16
	// Local counts the ready endpoints on this node; a dual-stack pod is one.
	Local int
}

// HealthChecks are those of all Services that have one, in the order of the Config.
func (t *Table) HealthChecks() []HealthCheck {
	var checks []HealthCheck
	for _, s := range t.config.Services {
		if s.HealthCheckNodePort == 0 {
			continue
		}
		local := map[string]bool{}
		for i := range s.Endpoints {
			// Not those that terminate: the load balancer is to look elsewhere while they still serve
			// (KEP-1669).
			if e := &s.Endpoints[i]; e.Node == t.config.Node && (e.Ready || s.PublishNotReady) {
				local[e.ID] = true
			}
		}
		checks = append(checks, HealthCheck{s.Namespace, s.Name, s.HealthCheckNodePort, len(local)})
	}
	return checks
}
