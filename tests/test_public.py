"""The public names: what scripts of users may lean on, in one place."""

import subprocess
import sys
from importlib import import_module

import polypath

PUBLIC = {
    "polypath": """
        ExpertList FeedForwardExperts InputError MoE RoutedLayers Routes Routing RoutingContext
        TopKRouter attach detach experts_of from_pretrained given losses record replay routed_layers
        save_pretrained update_biases whole_batch
    """,
    "polypath.routing": """
        All Attention AttentionRouter AttentionScorer AutonomousRouter AutonomousScorer
        AuxiliaryLoss Candidates ChosenGates CosineScorer Coupling DynamicRouter Entropy
        ExpertChoice ExpertChoiceRouter FirstCome GateScorer HardGate HashRouter Importance
        LayerLoss LinearScorer LoadBalance MLPScorer MoE NoisyLinearScorer OnlyExperts
        Orthogonality PerSlice PregatingScorer ProgressiveScaling
        RecurrentRouter RecurrentScorer Router RouterZ Routes Routing RoutingContext SelectionBias
        SigmoidGate SimilarityRouter SimilarityScorer SoftRouter SoftmaxGate Threshold TopK
        TopKRouter UniformGate current dispatch given losses record replay routed_layers schedule
        update_biases whole_batch
    """,
    "polypath.experts": """
        ClampedSwiGLU Coverage ExpertList ExpertView ExpertViews FactoredExperts
        FeedForwardExperts SharedExpert experts_of
    """,
    "polypath.language": """
        BPETokenizer ByteTokenizer Corpus Document Elastic RoutedLayers Split SubModel Tokenizer
        Windows attach bits_per_byte build_stack detach elastic_step extract from_pretrained
        kinds_of most_used python_kinds read_corpus read_tokenizer reroute running save_pretrained
        text_kinds token_kinds whole
    """,
    "polypath.graphs": """
        Adjacency Calibration EdgeWeights EncoderConfig GateConfig GraphEncoder
        HeuristicConfig HeuristicScorer Incoming KnowledgeGraph KnowledgeSplit Known LinkMoE
        LinkMoEConfig LinkPredictor LinkSplit NBFNet NBFNetConfig NCN NCNC NCNCConfig
        NCNConfig NamedGraph NeighbourSampler NodeRanking ORBIT_PAIRS Overlap ProductMLP
        ProductMLPConfig Ragged ReweightedEncoder Reweighting SavedKnowledge SavedPredictor
        WALK_VISIBLE adamic_adar approximate_topological_concentration common_neighbours
        common_sums edge_graphlet_degree_vectors ego_density expected_hits explain
        filtered_ranks graphlet_adjacencies graphlet_degree_vectors hard_negatives
        heterophilous hits_at hold_out import_graph intersections jaccard katz katz_index
        link_loader link_scores load_orbit_adjacencies mean_of_neighbours
        mean_reciprocal_rank mean_with_self neighbour_loader ogb_split orbit_adjacencies
        orbit_adjacency_blocks overlap pair_features pair_orbits pass_messages
        pass_statistics paths_between personalised_pagerank planetoid
        preferential_attachment propagate python_knowledge rank_nodes ranks_among read_edges
        read_facts read_grail read_openke read_pairs read_saved read_triples
        resource_allocation sample_negatives save_orbit_adjacencies shared_neighbours
        shortest_path split_entities split_facts split_links strata symmetric
        topological_concentration undirected write_triples
    """,
    "polypath.surgery": """
        AlignConfig Aligned Calibration Check Cut DenseLayer FactorLLM FactorLoss GA GDIFF Granular
        KnowledgeDistiller Lessons Merge Method Move NPO NeighbourhoodConstraint PriorApproximate
        RMU ReadMe Recovery Reference Sample Size Slices Surgery Target Trainable Tuning Unlearned
        Unlearning affinity align calibrate calibrate_pieces calibrating changed constrained_loss
        convert convert_folder dense_layer distance fingerprints merge merge_folder
        merge_to_native prior_label recover routed_layer shed split_experts supervise targets
        teachers_of tune_experts tune_factored tune_granular tune_pregated tune_router unlearn
    """,
    "polypath.serving": """
        Access ArrivalQueue Batch Belady Costs DiskExperts ExpertCache ExpertQueues ExpertStore
        FIFO LRU Policy Queue Random Request Route Served Spread Unit follow poisson_trace replay
        save_experts simulate
    """,
    "polypath.diagnosis": """
        Agreement Balance Fluctuation Gaps LayerCoupling Pathway Probe Specialisation
        TraceAccuracy activity attention_agreement balance between chance_overlap
        contingency dependence effective_dimension expert_similarity fluctuation
        follows_entropy gaps gate_information gate_mass generalised heaviest imbalance
        layer_coupling layer_couplings linear_cka linear_probe mean_entropy membership
        memorised noise_on_routers normalised_mutual_information pathway_distance
        pathway_distances pathways relative_drift roughness routed_kernel routing_cosines
        sample_gates share_of shares specialisation spelled stream_usage trace_accuracy
        transitions underused usage_entropy usage_overlap violations window_pathways
    """,
}


def test_the_public_names_are_these():
    for module, names in PUBLIC.items():
        assert sorted(import_module(module).__all__) == sorted(names.split()), module


def test_every_public_name_is_there():
    for module, names in PUBLIC.items():
        for name in names.split():
            assert getattr(import_module(module), name) is not None


def test_top_names_are_those_of_the_rooms():
    assert polypath.record is import_module("polypath.routing").record
    assert polypath.experts_of is import_module("polypath.experts").experts_of


def test_importing_the_package_imports_no_engine():
    code = "import polypath, sys; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
