# For llm_finetuning or alpaca-lora. `lorikeet import` makes a recipe of it: docs/migrating.md.
python finetune.py \
    --base_model HuggingFaceTB/SmolLM2-135M-Instruct \
    --data_path examples/elsewhere/alpaca.json \
    --output_dir runs/from-script \
    --mode 16 \
    --batch_size 2 \
    --micro_batch_size 2 \
    --num_epochs 3 \
    --learning_rate 1e-4 \
    --cutoff_len 512 \
    --val_set_size 1 \
    --train_on_inputs False \
    --prompt_template alpaca
